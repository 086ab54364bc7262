"""What Orpheus costs, each figure beside what others pay for the same on the same machine in the same minute."""
