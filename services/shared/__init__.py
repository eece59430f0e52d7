"""What all services share: settings, server, interceptors, channels, database, telemetry, clock, paging."""
