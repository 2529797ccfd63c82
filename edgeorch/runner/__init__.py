"""The small process that starts native services: one epoll loop, no Trio, so that it stays under 30 MB.

It lives apart from the daemon so that services run as another user and outlive a restart of the daemon.
"""
