"""What a run is and has done, as it lies in the store; needs no torch."""
