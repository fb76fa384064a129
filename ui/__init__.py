"""The front doors that people see: a web page (`ui.lab`) and a chat (`ui.bot`) over one `core.studio`."""
