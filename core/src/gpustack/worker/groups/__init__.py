"""Members of instances that span workers: how they find each other, check each other and start."""
