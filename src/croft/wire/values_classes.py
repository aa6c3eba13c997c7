"""Takes dataclasses, enums and named tuples apart and rebuilds them, without running the sender's code.

A class is found by name among the modules that this process has loaded already; nothing is imported. Instances
are built without `__init__`, `__new__`, `__post_init__` or property setters. Classes with a `__del__` are refused:
it would run on fields that the sender chose. Only declared fields are carried, not what else was set on an object.
"""

from __future__ import annotations

import enum
import sys
from collections.abc import Iterable
from types import MemberDescriptorType, ModuleType
from typing import Any, Final

from croft.errors import CodecError
from croft.wire.values_codes import NAME_CHARS_MAX

_DATACLASS_FIELDS: Final = "__dataclass_fields__"


def is_dataclass(kind: type) -> bool:
    """Whether instances of `kind` are dataclass instances."""
    return type(_class_attribute(kind, _DATACLASS_FIELDS)) is dict


def is_named_tuple(kind: type) -> bool:
    """Whether `kind` is what `typing.NamedTuple` or `collections.namedtuple` makes, or a subclass of one."""
    fields = _class_attribute(kind, "_fields")
    return issubclass(kind, tuple) and type(fields) is tuple and all(type(name) is str for name in fields)


def is_member(value: enum.Enum) -> bool:
    """Whether `value` is a named member, as opposed to a combination of flags."""
    return type(value).__dict__["_member_map_"].get(value._name_) is value


def name_of(kind: type) -> tuple[str, str]:
    """Module and qualified name by which the receiver is to find `kind`. ValueError if it cannot."""
    if "<" in kind.__qualname__:
        raise ValueError(f"object of the class {kind.__qualname__}, which is defined inside a function")
    if _has_finaliser(kind):
        raise ValueError(f"object of the class {kind.__qualname__}, which has a __del__")
    return kind.__module__, kind.__qualname__


def dataclass_fields(value: Any) -> Iterable[tuple[str, object]]:
    """Names and values of all fields. ValueError if a field is not set or such an object cannot be rebuilt."""
    kind = type(value)
    names = _field_names(kind)
    _bare_instance(kind, names)
    fields: list[tuple[str, object]] = []
    for name in names:
        try:
            fields.append((name, object.__getattribute__(value, name)))
        except AttributeError:
            raise ValueError(f"the field {name!r} of {kind.__qualname__} is not set") from None
    return fields


def named_tuple_fields(value: Any) -> Iterable[tuple[str, object]]:
    """Names and values of all fields. ValueError if there are more values than names."""
    return list(zip(_class_attribute(type(value), "_fields"), tuple.__iter__(value), strict=True))


def rebuild_enum(content: list[Any]) -> object:
    """The member that module, qualified name and member name say."""
    module, qualname, name = content
    kind = _loaded_class(module, qualname)
    if not isinstance(kind, enum.EnumType):
        raise _differs(kind, "is no enum")
    member = kind.__dict__["_member_map_"].get(name)
    if member is None:
        raise _differs(kind, f"has no member {name!r}")
    return member


def rebuild_flag(content: list[Any]) -> object:
    """The combination of flags that module, qualified name and number say."""
    module, qualname, number = content
    kind = _loaded_class(module, qualname)
    if not (type(kind) is enum.EnumType and issubclass(kind, enum.Flag)) or type(number) is not int:
        raise _differs(kind, "is no enum of flags")
    if any("_missing_" in base.__dict__ for base in kind.__mro__ if base.__module__ != "enum"):
        raise _differs(kind, "decides by code of its own which values it has")
    return kind(number)


def rebuild_dataclass(content: list[Any]) -> object:
    """An instance with exactly the fields given, which must be the class's own."""
    module, qualname, fields = content
    kind = _loaded_class(module, qualname)
    if not is_dataclass(kind):
        raise _differs(kind, "is no dataclass")
    names = _field_names(kind)
    _check_fields(kind, names, fields)
    value = _bare_instance(kind, names)
    for name, item in fields.items():
        object.__setattr__(value, name, item)
    return value


def rebuild_named_tuple(content: list[Any]) -> object:
    """An instance with exactly the fields given, which must be the class's own."""
    module, qualname, fields = content
    kind = _loaded_class(module, qualname)
    if not is_named_tuple(kind):
        raise _differs(kind, "is no named tuple")
    names = _class_attribute(kind, "_fields")
    _check_fields(kind, names, fields)
    values: Any = [fields[name] for name in names]
    rebuilt: object = tuple.__new__(kind, values)
    return rebuilt


def _class_attribute(kind: type, name: str) -> Any:
    """What the class or a parent defines, found without running descriptors or a metaclass."""
    for base in kind.__mro__:
        if name in base.__dict__:
            return base.__dict__[name]
    return None


def _field_names(kind: type) -> list[str]:
    # Pseudo-fields (ClassVar, InitVar) live in the same table; `dataclasses.fields` tells them apart likewise.
    table = _class_attribute(kind, _DATACLASS_FIELDS)
    return [name for name, field in table.items() if str(field._field_type) == "_FIELD"]


def _bare_instance(kind: type, names: Iterable[str]) -> object:
    """An instance without its fields. ValueError if making it or setting a field would run the class's code."""
    for name in names:
        descriptor = _class_attribute(kind, name)
        if hasattr(type(descriptor), "__set__") and type(descriptor) is not MemberDescriptorType:
            raise ValueError(f"object of the class {kind.__qualname__}, whose field {name!r} is a property")
    try:
        return object.__new__(kind)
    except TypeError:
        raise ValueError(f"object of the class {kind.__qualname__}, which derives from a built-in type") from None


def _has_finaliser(kind: type) -> bool:
    return _class_attribute(kind, "__del__") is not None


def _check_fields(kind: type, names: Iterable[str], fields: Any) -> None:
    if type(fields) is not dict or set(fields) != set(names):
        there = ", ".join(map(str, fields)) if type(fields) is dict else "none"
        raise _differs(kind, f"has the fields {', '.join(names)} here and {there[:NAME_CHARS_MAX]} in the result")


def _loaded_class(module_name: object, qualname: object) -> type:
    """The class of that name, if loaded. Looks into dictionaries only, so that no `__getattr__` runs."""
    if type(module_name) is not str or type(qualname) is not str or len(module_name) + len(qualname) > NAME_CHARS_MAX:
        raise CodecError("a class without a name")
    full_name = f"{module_name}.{qualname}"
    module = sys.modules.get(module_name)
    if not isinstance(module, ModuleType):
        raise CodecError(
            f"the result holds a `{full_name}`, and the module `{module_name}` is not loaded here",
            remedy=f"Import `{module_name}` before you ask for the result, or return a dict.",
        )
    names = object.__getattribute__(module, "__dict__")
    found: object = None
    for part in qualname.split("."):
        found = names.get(part)
        if not isinstance(found, type):
            raise CodecError(
                f"the result holds a `{full_name}`, which does not exist here",
                remedy="Use the same version of that module on both sides, or return a dict.",
            )
        names = type.__getattribute__(found, "__dict__")
    assert isinstance(found, type), "a qualified name has one part at least"
    if _has_finaliser(found):
        raise _differs(found, "has a __del__, which would run on what a peer sent")
    return found


def _differs(kind: type, how: str) -> CodecError:
    return CodecError(
        f"the result does not fit the class `{kind.__module__}.{kind.__qualname__}`, which {how}",
        remedy="Use the same version of that module on both sides, or return a dict.",
    )
