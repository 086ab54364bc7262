"""From a bundle somebody sent to a version that can be started."""
