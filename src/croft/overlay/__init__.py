"""Who is there, how to reach them, and who may come in."""
