"""The V100 tables (see README.md there) and the profile built from them."""
