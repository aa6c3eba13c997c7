"""Values that everything else speaks of. They know nothing of files, clocks or networks."""
