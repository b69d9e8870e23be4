"""Workers that come with DANE: one file, one worker."""
