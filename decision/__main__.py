import sys

from decision.command import main

sys.exit(main())
