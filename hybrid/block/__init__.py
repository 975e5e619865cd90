"""The TCMU front end (a real SCSI disk) lives here. It is not built yet."""
