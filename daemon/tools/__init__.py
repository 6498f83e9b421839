"""What makes or shows parts of upcall, and is no part of the daemon."""
