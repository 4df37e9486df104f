"""What flannel-pl costs, next to the notebook's code and to what the machine can do."""
