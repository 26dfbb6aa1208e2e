"""What everything else stands on: files, atomic writes, the machine, Ray workers."""
