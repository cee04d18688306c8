"""The Kubernetes controller: runs TrainingRuns as Jobs.

It can be killed at any time: finished steps are in the store, running steps are Jobs in the cluster. Each sync reads
both, and ``reconcile``, a pure function, decides what to create and delete.
"""
