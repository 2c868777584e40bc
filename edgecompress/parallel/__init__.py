"""Independent calls: on threads, in processes, on clusters."""
