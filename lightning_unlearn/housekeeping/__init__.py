"""What a store holds, what it takes on the disk, and how it is cleared up."""
