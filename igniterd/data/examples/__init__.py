"""Small programs to begin with: each is one way to use what igniterd says."""
