"""Files, locks, devices, random seeds, progress bars, the terminal and signals. The modules are internal to sfrik."""
