"""TrainingRunClient as Kubernetes Jobs: a loop that lists, decides and acts, and remembers nothing.

What is finished is in the store, what is running is in the cluster; ``deciding`` is a pure function of the two.
"""
