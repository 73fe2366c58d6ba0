"""What tests share: builders, doubles and the things that take long to make."""
