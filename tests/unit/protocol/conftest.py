from hypothesis import settings

# How long an example takes is no verdict: other processes may have the processor.
settings.register_profile("protocol", deadline=None)
settings.load_profile("protocol")
