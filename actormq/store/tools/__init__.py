"""What `actormq store` does to a store of ours or RocketMQ's while no role of it is needed.

May enter: looking at a store, comparing its parts, cutting it, making its derived parts anew, copying it.
Over `disk.Disk` only, like the rest of the store; who holds the store's lock, what is printed and when a
person is asked is the command's business.  Progress is told to a function that is handed in.
"""
