"""How people and programs say who they are: one module a way, all of which give an `Identity`."""
