"""Names for peers that people can say: two words, always the same for one id. Not unique, and proof of nothing."""

from __future__ import annotations

from croft.model.ids import PeerId

FIRST = ["amber", "autumn", "birch", "bold", "bracken", "bright", "brook", "calm", "cedar", "chalk", "clay", "clear", "clover", "copper", "coral", "cosy", "crisp", "dapple", "dawn", "deep", "dew", "dusk", "early", "elder", "ember", "evening", "fallow", "fern", "field", "flint", "foggy", "forest", "frost", "gentle", "glade", "golden", "granite", "hazel", "heath", "hedge", "high", "hollow", "honey", "ivy", "keen", "lark", "linen", "little", "marsh", "meadow", "merry", "mild", "misty", "moor", "moss", "mossy", "night", "north", "oak", "old", "olive", "open", "pale", "patient", "pebble", "pine", "plain", "plum", "proud", "quick", "quiet", "rain", "reed", "ridge", "river", "rosy", "rowan", "russet", "rye", "sandy", "sedge", "shady", "silver", "slate", "slow", "small", "snowy", "south", "spring", "steady", "stone", "still", "summer", "swift", "tall", "thistle", "thorn", "tidal", "topaz", "umber", "vale", "velvet", "warm", "west", "wheat", "white", "wide", "wild", "willow", "windy", "winter", "wise", "wood", "wren", "yarrow", "young"]
SECOND = ["adder", "alpaca", "ant", "auk", "avocet", "badger", "bat", "bear", "beaver", "bee", "beetle", "bison", "bittern", "boar", "bunting", "buzzard", "calf", "camel", "carp", "cat", "chough", "cob", "colt", "coot", "crab", "crane", "cricket", "crow", "cuckoo", "curlew", "deer", "dipper", "dolphin", "donkey", "dormouse", "dove", "dragonfly", "duck", "eagle", "eel", "egret", "elk", "falcon", "ferret", "finch", "firefly", "fox", "frog", "gannet", "gecko", "goat", "goose", "grebe", "grouse", "gull", "hare", "harrier", "hawk", "hedgehog", "heron", "hornet", "horse", "hound", "ibex", "ibis", "jackdaw", "jay", "kestrel", "kite", "lamb", "lapwing", "linnet", "lizard", "lynx", "magpie", "mallard", "marten", "martin", "minnow", "mole", "moose", "moth", "mouse", "newt", "nuthatch", "oriole", "osprey", "otter", "owl", "oyster", "partridge", "perch", "pigeon", "pike", "pipit", "plover", "pony", "puffin", "quail", "rabbit", "raven", "robin", "rook", "salmon", "seal", "shrew", "siskin", "snail", "snipe", "sparrow", "squirrel", "starling", "stoat", "stork", "swallow", "swan", "swift", "tern", "thrush", "toad", "trout", "turtle", "vole", "wagtail", "walrus", "weasel", "whale", "wolf", "wren"]


def nickname(peer: PeerId) -> str:
    """Such as `river-otter`. The id is a public key, so its digits are as good as a hash."""
    number = int(peer[:16], 16)
    return f"{FIRST[number % len(FIRST)]}-{SECOND[number // len(FIRST) % len(SECOND)]}"
