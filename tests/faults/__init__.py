"""What a training has to bear: kills, signals, machines and stores that fail."""
