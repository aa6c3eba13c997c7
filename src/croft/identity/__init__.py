"""Keys, device certificates, grants, names: who somebody is, and what he may do."""
