"""The cloud side: one provider behind the contract of a chat model.

`settings` is light and may be imported anywhere; `model` imports the providers' SDKs, takes over a second to do so, and
belongs in the cloud worker's process alone.
"""
