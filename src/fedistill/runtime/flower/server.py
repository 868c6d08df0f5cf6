"""Import path of the server's side in apps that `fedistill flower init` wrote before version 0.2."""

from fedistill.flower.app_template import say_renew
from fedistill.flower.server_app import app

__all__ = ["app"]

say_renew("server")
