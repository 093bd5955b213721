"""Usage pages, platform analytics and the API: what people look at and programs call."""
