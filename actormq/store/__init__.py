"""The store: RocketMQ's files byte for byte, over memory and one small interface to the disk.

May enter: formats of files, and what keeps them right (cutting, recovery).  Everything here works
on memory that is handed in; file access goes through `disk.Disk` only, so that tests can replace it
by a disk that records, fails or crashes.  No sockets, no processes, no clock, no log calls.
"""
