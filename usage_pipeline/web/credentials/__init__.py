"""What proves who asks: tokens of the application, service keys, portal links. No routes."""
