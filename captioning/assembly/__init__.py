"""From a configuration to the parts that the scripts put together."""
