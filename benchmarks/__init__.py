"""What the method gains and costs, measured."""
