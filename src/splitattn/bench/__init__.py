"""How fast networks run on this machine, side by side, and how fast they could."""
