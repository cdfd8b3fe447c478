"""The students and teachers that raygeo makes itself."""
