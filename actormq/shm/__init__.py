"""Shared memory between the roles of one broker, and small files beside it.

May enter: segments, rings and doorbells, pages of cells, tables and maps that several processes read.
They touch memory, descriptors and files; who may write a cell is said in the file that lays it out.
Bytes first, position last: a process may die between any two steps.
"""
