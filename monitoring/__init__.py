"""The monitor: looks at every arrow from inbox to inference server and never acts."""
