"""From the warehouse to what readers see, in three places."""
