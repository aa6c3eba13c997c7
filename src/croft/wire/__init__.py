"""How bytes become messages: codec, framing, signed envelopes, protocol versions."""
