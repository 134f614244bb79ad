"""What more than one network is made of."""
