"""Getting clients onto hosts and keeping them there."""
