JOIN_PROTOCOL = b"croft/join/1"
