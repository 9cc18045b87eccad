"""Files that are sent to Triton. They run in its Python, so they import nothing of igniterd."""
