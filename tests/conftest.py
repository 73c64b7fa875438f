"""What holds for every test."""

from tests.support.configuration import use_own_configuration

use_own_configuration()
