"""The pexecd command."""
