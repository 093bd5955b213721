"""How people sign in: the routes of each way, all of which begin the same session."""
