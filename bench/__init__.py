"""How fast and how large: each module here is a program, see CONTRIBUTING.md."""
