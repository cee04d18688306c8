"""The Kubernetes controller: runs TrainingRuns as Jobs.

It keeps no state between syncs: finished steps are in the store, running ones in the cluster. ``reconcile`` is a pure
function of the two.
"""
