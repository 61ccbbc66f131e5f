"""What compares meanings: embedding models that a package ships, one module each."""
