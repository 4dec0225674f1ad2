"""Images from the teacher alone."""
