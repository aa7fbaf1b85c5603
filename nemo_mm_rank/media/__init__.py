"""Images, audio and video, opened safely and decoded as streams."""
